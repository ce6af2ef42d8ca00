"""The commands of ``targetprop``, one a file: what it is about, its arguments, and what it does."""
