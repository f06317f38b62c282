"""The whole service on one machine: PostgreSQL, an S3 server, MLflow and Prefect with passwords, workers.

    plan.py        ports and secrets, made once and kept
    part.py        one server process: how it is started and seen to be ready
    postgres.py    a PostgreSQL cluster of our own
    swift.py       OpenStack Swift as the S3 server
    parts.py       everything that runs, and in which order
    supervisor.py  starts it, watches it, ends it
    __main__.py    infra/stack up | down | status

Everything listens on loopback only.
"""
