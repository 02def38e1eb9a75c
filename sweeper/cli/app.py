"""All verbs, in the order in which a user meets them."""

from __future__ import annotations

import typer

from sweeper.cli import check, look, plan, run, serve, ship

app = typer.Typer(
    name="sweeper",
    help="Hyperparameter sweeps for fine-tuning LLMs: Ray workers, Optuna samplers and pruners, MLflow tracking.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.command("doctor")(check.doctor)
app.command("validate")(check.validate)
app.command("plan")(plan.plan)
app.command("run")(run.run)
app.command("status")(look.status)
app.command("trials")(look.trials)
app.command("show")(look.show)
app.command("best")(look.best)
app.command("export")(ship.export)
app.command("predict")(ship.predict)
app.command("mlflow")(serve.mlflow)
app.command("dashboard")(serve.dashboard)
