"""GCS, Azure and memory behind `drivers.object_stores`, through obstore."""
