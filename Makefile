# make train   set up .venv, then pretrain on the built-in synthetic X-rays
# make test    the same set-up, then the test-suite
# make tour    every experiment once, small, on synthetic X-rays, and the report
# make lint    formatting, lint and types
# ARGS passes flags on: make train ARGS="--dataset covid --num-epochs 300"

PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3.14 python3 python; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' 2>/dev/null && echo $$p && break; done)
ARGS ?=

.PHONY: train test tour lint clean

train: .venv/installed
	.venv/bin/python selfsup_task/train_barlow_twins.py $(ARGS)

test: .venv/installed
	.venv/bin/python -m pytest $(ARGS)

# From pretraining to report, each script once: pretraining by default, the others with fewer trials and steps, under runs/tour/.
TOUR := runs/tour/compare
SCAN := --num-epochs 1 --seeds 0 --finetune.num-labels 120 --finetune.min-steps 10
tour: .venv/installed
	.venv/bin/python selfsup_task/train_barlow_twins.py
	.venv/bin/python downstream_task/trained_vs_no_trained_compare.py --run-name tour/compare --epochs 0 --min-steps 150
	.venv/bin/python downstream_task/trained_vs_no_trained_compare.py --run-name tour/folds --dataset phantom_folds \
		--folds 0 1 2 3 4 --draws 5 --ways linear --backbone timm/tf_efficientnet_lite0 --encoders random shared \
		--num-labels 120
	.venv/bin/python downstream_task/train_models_with_frozen_parts.py --run-name tour/frozen --parts fc all \
		--num-labels 120 --epochs 0 --min-steps 25
	.venv/bin/python downstream_task/confusion_matrix.py --runs $(TOUR)
	.venv/bin/python downstream_task/predict.py --run-name tour/predictions \
		--classifier $(TOUR)/pretrained_zeros_n1201_d0
	.venv/bin/python selfsup_task/train_barlow_twins.py --dataset folder --data-root datasets/phantom \
		--run-name tour/folder --start random --backbone resnet18 --img-res 32 --num-epochs 1
	.venv/bin/python selfsup_task/share_weights.py --output runs/tour/shared
	.venv/bin/python interpretability/grad_cam.py --run-name tour/grad_cam --per-class 6 \
		--checkpoints $(TOUR)/random_zeros_n1201_d0 $(TOUR)/pretrained_zeros_n1201_d0
	.venv/bin/python interpretability/shortcut_audit.py --run-name tour/audit \
		--checkpoints $(TOUR)/pretrained_zeros_n1201_d0
	.venv/bin/python selfsup_task/check_bt_resources.py --run-name tour/resources --backbones resnet18 --batch-sizes 64
	.venv/bin/python selfsup_task/scan_optimal_lr.py --run-name tour/lr --range-steps 25 \
		--schedulers constant cosine $(SCAN)
	.venv/bin/python selfsup_task/scan_best_transformations.py --run-name tour/transformations --recipes base short $(SCAN) \
		--seeds 0 1
	.venv/bin/python selfsup_task/scan_best_hyperparameters.py --run-name tour/hyperparameters --lambdas 5e-3 5e-4 \
		--projectors 512 $(SCAN)
	.venv/bin/python downstream_task/scan_best_supervised_hyperparameters.py --run-name tour/search --num-trials 8 \
		--num-labels 120
	.venv/bin/python utils/make_report.py

lint: .venv/installed
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/pyright

# A second call installs nothing: the stamp is newer than what it was made from.
.venv/installed: requirements.txt requirements-dev.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 to 3.14 found; install one, or give its path: make PYTHON=/path/to/python"; exit 1; }
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet -r requirements-dev.txt -e .
	@touch $@

clean:
	rm -rf .venv
