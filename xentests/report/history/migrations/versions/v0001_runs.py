"""The first layout: runs, executions, figures."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "runs",
        sa.Column("id", sa.String(200), nullable=False),
        sa.Column("qualification", sa.String(200), nullable=False),
        sa.Column("release", sa.String(400), nullable=False),
        sa.Column("arch", sa.String(20), nullable=False),
        sa.Column("variant", sa.String(200), nullable=False),
        sa.Column("revision", sa.String(400), nullable=False),
        sa.Column("machine", sa.String(400), nullable=False),
        sa.Column("started", sa.Float(), nullable=False),
        sa.Column("exit_status", sa.Integer(), nullable=True),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("facts", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_runs"),
    )
    op.create_index("ix_runs_release_arch_started", "runs", ["release", "arch", "started"])
    op.create_table(
        "executions",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("run_id", sa.String(200), nullable=False),
        sa.Column("nodeid", sa.String(800), nullable=False),
        sa.Column("verdict", sa.String(40), nullable=False),
        sa.Column("started", sa.Float(), nullable=False),
        sa.Column("seconds", sa.Float(), nullable=False),
        sa.Column("title", sa.Text(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("evidence", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name="fk_executions_run_id_runs", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_executions"),
        sa.UniqueConstraint("run_id", "nodeid", name="uq_executions_run_id_nodeid"),
    )
    op.create_index("ix_executions_nodeid", "executions", ["nodeid"])
    op.create_table(
        "figures",
        sa.Column("execution_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("name", sa.String(300), nullable=False),
        sa.Column("value", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(
            ["execution_id"], ["executions.id"], name="fk_figures_execution_id_executions", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("execution_id", "name", name="pk_figures"),
    )
