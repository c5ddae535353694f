"""One S3 bucket behind `drivers.object_stores`: requests, signatures, answers, and what an endpoint really does."""
