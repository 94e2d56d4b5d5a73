"""An index as a SavedModel: export, load, verify."""
