"""The commands ``kedit push``, ``kedit pull`` and ``kedit search``. They import torch when they run."""
