"""Long work: taking in documents and closing periods, for callers who wait and for those who come back."""
