"""The figures and tables of the paper, and the evidence at length: a file each."""
