"""A model, an objective, a router, a retention method, a callback, a data source, a law and a study for kleiber."""
