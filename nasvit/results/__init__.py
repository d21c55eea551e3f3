"""Results of a run: records, objectives, fronts. Free of torch."""
