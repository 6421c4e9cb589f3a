"""Fine-tuning baselines: a few optimiser steps on the new answer. This file imports nothing."""
