from stores import bucket, s3, store  # noqa: F401
from swift_cluster import swift  # noqa: F401
