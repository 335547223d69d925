"""The parts of scripts/kaggle_bundle.py: what goes into the folder, the wheels, the notebook, and the rehearsal."""
