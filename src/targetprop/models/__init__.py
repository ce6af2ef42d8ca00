"""Modern small models, ordinary modules."""
