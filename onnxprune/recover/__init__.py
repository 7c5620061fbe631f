"""Recovery without training: repairs of a model that was cut."""
