"""Second-moment statistics of MLP keys: collected once per model and layer, used by every edit."""

from kedit_methods_locate.stats.checks import check
from kedit_methods_locate.stats.collect import Partial, Sums, collect
from kedit_methods_locate.stats.corpus import Corpus, DocumentRows, FileCorpus, IdRows, Rows, TextCorpus
from kedit_methods_locate.stats.definite import Definite, Dense, Factorised, Identity, solving_device
from kedit_methods_locate.stats.derived import derived, derived_file
from kedit_methods_locate.stats.fingerprint import key_of, tokenizer_digest, weights_digest
from kedit_methods_locate.stats.lookup import cached, collected, statistics_for, whereabouts
from kedit_methods_locate.stats.sample import sample_rows
from kedit_methods_locate.stats.source import Sample, Source
from kedit_methods_locate.stats.statistic import TOKENS_PER_WIDTH, Statistic, merged
from kedit_methods_locate.stats.store import load_npz, load_statistics, save_statistics

__all__ = [
    "TOKENS_PER_WIDTH",
    "Corpus",
    "Definite",
    "Dense",
    "DocumentRows",
    "Factorised",
    "FileCorpus",
    "IdRows",
    "Identity",
    "Partial",
    "Rows",
    "Sample",
    "Source",
    "Statistic",
    "Sums",
    "TextCorpus",
    "cached",
    "check",
    "collect",
    "collected",
    "derived",
    "derived_file",
    "key_of",
    "load_npz",
    "load_statistics",
    "merged",
    "sample_rows",
    "save_statistics",
    "solving_device",
    "statistics_for",
    "tokenizer_digest",
    "weights_digest",
    "whereabouts",
]
