"""Object stores: one driver over what it asks of a store (`bucket`), which S3 and obstore answer."""
