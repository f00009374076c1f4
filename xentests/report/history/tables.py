"""The tables: a run is one pytest call on one release and architecture; it has executions, and these have figures.

What makes two runs comparable stands in the run: ``release`` as it was asked for, ``revision`` as it was found.
Changes go through ``migrations``; selftests hold this file and the newest migration to each other.
"""

from __future__ import annotations

from sqlalchemy import JSON, Column, Float, ForeignKey, Index, Integer, MetaData, String, Table, Text, UniqueConstraint

METADATA = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

RUNS = Table(
    "runs",
    METADATA,
    Column("id", String(200), primary_key=True),
    Column("qualification", String(200), nullable=False),  # empty for a run outside of one
    Column("release", String(400), nullable=False),
    Column("arch", String(20), nullable=False),
    Column("variant", String(200), nullable=False),  # of the machine: QEMU, fresh boots
    Column("revision", String(400), nullable=False),  # package and build id; empty where no host came up
    Column("machine", String(400), nullable=False),  # what the emulation ran on
    Column("started", Float, nullable=False),  # seconds since the epoch
    Column("exit_status", Integer),  # null for a run that was killed
    Column("path", Text, nullable=False),
    Column("facts", JSON, nullable=False),
    Index(None, "release", "arch", "started"),
)

EXECUTIONS = Table(
    "executions",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("run_id", String(200), ForeignKey("runs.id", ondelete="CASCADE"), nullable=False),
    Column("nodeid", String(800), nullable=False),
    Column("verdict", String(40), nullable=False),
    Column("started", Float, nullable=False),
    Column("seconds", Float, nullable=False),
    Column("title", Text, nullable=False),
    Column("message", Text, nullable=False),
    Column("evidence", Text, nullable=False),
    UniqueConstraint("run_id", "nodeid"),
    Index(None, "nodeid"),
)

FIGURES = Table(
    "figures",
    METADATA,
    Column(
        "execution_id", Integer, ForeignKey("executions.id", ondelete="CASCADE"), primary_key=True, autoincrement=False
    ),
    Column("name", String(300), primary_key=True),
    Column("value", Float, nullable=False),
)
