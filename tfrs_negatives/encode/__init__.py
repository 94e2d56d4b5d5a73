"""Raw columns to vectors: the catalogue, the features and the towers."""
