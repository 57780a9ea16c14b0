"""Which signals of ten images order models as a large test split does."""
