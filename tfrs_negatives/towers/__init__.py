"""Features to vectors: kinds of features, layers, towers."""
