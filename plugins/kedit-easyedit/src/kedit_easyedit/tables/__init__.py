"""The tables: what becomes of each key of each of EasyEdit's methods; :mod:`kedit_easyedit.convert` reads them."""

from __future__ import annotations

from collections.abc import Mapping

from kedit_easyedit.rules import Table
from kedit_easyedit.tables import finetune, locate, memory, meta

TABLES: tuple[Table, ...] = (*locate.TABLES, *finetune.TABLES, *memory.TABLES, *meta.TABLES)

WITHOUT: Mapping[str, str] = {
    "QLORA": "kedit trains LoRA on weights in floating point; convert a LoRA file",
    "MEMITFE": "it asks a hosted model for features, which kedit does not",
    "DPO": "kedit has no preference training",
    "DEFER": "it is a baseline of GRACE's that kedit does not have",
    "DINM": "it takes harmful behaviour away, which kedit does not do",
    "ULTRAEDIT": "kedit has no such method",
    "SIMIE": "kedit has no such method",
    "CORE": "kedit has no such method",
    "SPHERE": "kedit has no such method",
    "EAMET": "kedit has no such method",
    "UNKE": "it writes free text, which kedit does not edit",
    "UNKEARE": "it writes free text, which kedit does not edit",
    "FTAPI": "it fine-tunes behind an endpoint, where kedit can only route (ike)",
    "LORAUNS": "it writes free text, which kedit does not edit",
    "FTUNS": "it writes free text, which kedit does not edit",
    "DOLA": "it changes decoding and edits nothing",
    "DECO": "it changes decoding and edits nothing",
    "DEEPEDITAPI": "it works behind an endpoint, where kedit can only route (ike)",
    "SERACMULTI": "kedit edits language models, not those of images",
    "INSTRUCTEDIT": "it is MEND trained on several tasks; convert the file of MEND and set instruction",
}
"""Methods of EasyEdit's that kedit has no counterpart of, and why."""
