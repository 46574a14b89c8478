"""Activation patching: which layer, position and head carries what one text tells the model and another does not."""
