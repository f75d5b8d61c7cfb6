"""Arms side by side: the same label subsets for every initialisation, and what their scores say with intervals."""

from dataclasses import dataclass

from dataset_loader.xrays import XRays, open_xrays
from downstream_task.finetuning import METHODS, TrainingConfig
from downstream_task.label_efficiency import analyse
from downstream_task.trials import Trial, check_trials, run_trial, run_trials, shared_summary, usable_arms
from utils.config import check_at_least, check_choice, check_list
from utils.hardware import choose_device
from utils.logging_utils import Run


@dataclass(frozen=True, kw_only=True)
class CompareConfig(TrainingConfig):
    """Every key of downstream_task/trained_vs_no_trained_compare.py."""

    encoders: list[str]
    methods: list[str]
    fractions: list[float]
    draws: int
    lrs: list[float]

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least("draws", self.draws, 1)
        for key in ("encoders", "methods", "fractions", "lrs"):
            check_list(key, getattr(self, key))
        for lr in self.lrs:
            check_at_least("lrs", lr, 0)
        for method in self.methods:
            check_choice("methods", method, METHODS)


def compare(config: CompareConfig) -> Run:
    """All arms x methods x fractions x draws, then intervals; finished runs are not trained again."""
    run = Run(config.run_name, config, "comparison")
    if run.summary is not None:
        return run
    xrays = open_xrays(config, choose_device(config.device))
    arms = usable_arms(config, config.encoders, xrays)
    check_trials(_trials(config, arms, dict.fromkeys(arms, config.lrs[0])), config, xrays)
    run.start(data=xrays.facts(), arms=arms)
    lrs = chosen_lrs(config, arms, xrays)
    table = run_trials(_trials(config, arms, lrs), config, xrays, run)
    curves, differences = analyse(table, run.folder, "predictions_val.csv")
    run.save_table("curves", curves)
    run.save_table("differences", differences)
    run.finish(
        {
            **shared_summary(table, config, arms, xrays),
            "classes": list(xrays.columns.label_names),
            "lrs": lrs,
            "left_out": [encoder for encoder in config.encoders if encoder not in arms.values()],
            "part": "validation",
        }
    )
    return run


def _trials(config: CompareConfig, arms: dict[str, str], lrs: dict[str, float]) -> list[Trial]:
    return [
        Trial(arm, encoder, method, fraction, draw, lrs[arm] if method == "finetune" else 0.0)
        for draw in range(config.draws)
        for fraction in config.fractions
        for method in config.methods
        for arm, encoder in arms.items()
    ]


def chosen_lrs(config: CompareConfig, arms: dict[str, str], xrays: XRays) -> dict[str, float]:
    """The learning rate of each arm: the best on validation at the middle fraction, first draw."""
    if "finetune" not in config.methods or len(config.lrs) == 1:
        return dict.fromkeys(arms, config.lrs[0])
    fraction = sorted(config.fractions)[(len(config.fractions) - 1) // 2]
    chosen = {}
    for arm, encoder in arms.items():
        rows = [run_trial(Trial(arm, encoder, "finetune", fraction, 0, lr), config, xrays) for lr in config.lrs]
        chosen[arm] = max(rows, key=lambda row: row["score"])["lr"]
    return chosen
