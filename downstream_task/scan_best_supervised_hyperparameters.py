"""Which learning rate, weight decay, batch size, number of epochs, flip and crop? A search over supervised training.

    python downstream_task/scan_best_supervised_hyperparameters.py
    python downstream_task/scan_best_supervised_hyperparameters.py --dataset covid --img-res 224 --store-res 256 \\
        --epochs-range 5 30 --num-trials 55 --run-name search/covid --encoder random
    python downstream_task/scan_best_supervised_hyperparameters.py --storage mysql://user@host/optuna --num-trials 200

Optuna (seeded TPE after ten random trials, median pruner) maximises the validation score of a fine-tuning. The study
lies in runs/<run_name>/study.db, or in any database that optuna knows, which many machines may share. runs/<run_name>/
holds summary.csv (a row a trial), best.json (ready to paste into a config) and figures/search.png. As it stands, 55
trials take minutes on two cores on synthetic X-rays. The same command again goes on where it stopped; a larger
num_trials adds to it; several may work on one search at once.
"""

from typing import Any

from utils.scripts import flags, run_script

config: dict[str, Any] = {
    # data; trained_vs_no_trained_compare.py explains the keys that are not explained here
    "dataset": "phantom",
    "data_root": "",
    "store_res": 36,
    "split_seed": 0,
    "findings": ["Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion"],
    "uncertain": "ignore",
    "blank": "zero",
    "class_weights": True,
    # run
    "run_name": "search/{dataset}",  # runs/<run_name>/; {dataset} is the name of the data set
    "random_seed": 0,  # of the search, the labels and the weights
    "num_trials": 55,  # in all, with those of earlier calls
    "storage": "",  # where optuna keeps the study: any URL that it takes; "" is study.db in the run's folder
    # network
    "encoder": "random",  # "random" | "imagenet" | "imagenet:FILE" | *_state_dict.pt
    "trainable": "all",  # "all", "fc", or blocks with the head, such as "layer3-4+fc"
    "backbone": "resnet18",
    "in_channels": 1,
    "allow_seen": False,
    # what is searched, on a log scale for lr and weight decay; flip and crop are on or off
    "lr_range": [1e-4, 1e-2],  # least and largest
    "weight_decay_range": [1e-6, 1e-2],  # least and largest
    "epochs_range": [1, 4],  # least and most, of the labelled images
    "batch_sizes": [16, 32, 64, 96],  # to choose from
    # training
    "label_fraction": 0.25,  # of the train part's labels
    "img_res": 32,
    "head": "zeros",
    "optimizer": "adam",
    "backbone_lr_factor": 1.0,
    "precision": "auto",
    "device": "auto",
    "threads": 0,
}

if __name__ == "__main__":
    config = flags(config, __doc__, __file__)  # before the slow imports

import json

import pandas as pd

from downstream_task.supervised_search import search
from utils import plots, scan_plots
from utils.config import UserError
from utils.wording import metric_name


def main(config: SearchConfig) -> None:
    """Search, draw, print the winner ready to paste."""
    run = search(config)
    assert run.summary is not None
    found, table = run.summary, pd.read_csv(run.folder / "summary.csv")
    metric = f"{metric_name(found['metric'])} on validation"
    title = plots.marked(f"Search over supervised training, {found['labels']:,} labels", found["synthetic"])
    run.save_figure("search", scan_plots.search(table, found["importances"], metric, title))
    print(f"\n{len(table)} trials, {found['pruned']} pruned; best {metric}, chosen among them: {found['score']:.3f}")
    print("\n".join(f'    "{key}": {json.dumps(value)},' for key, value in found["best"].items()))
    print(f"\ntable, best.json and figure   {run}/")
    print("next   put these values into the dict of downstream_task/trained_vs_no_trained_compare.py and run it")
    if found["failed"]:
        raise UserError(f"{found['failed']} of {len(table)} trials failed; {run}/summary.csv has their errors.")


if __name__ == "__main__":
    run_script(main, SearchConfig, config)
