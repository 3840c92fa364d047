"""The stages a candidate passes, cheapest first."""
