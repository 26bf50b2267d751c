"""The rules of weft.model.operators, grouped by family. `shapes` holds what they share."""
