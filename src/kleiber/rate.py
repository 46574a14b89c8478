"""The learning rate of a run that names none, where muP's does not serve: in the standard parametrisation, and of
preferences.

In the standard parametrisation the best rate falls as the width grows, and weights that were trained elsewhere want a
smaller one than new ones: at muP's .02 five steps unlearn an imported model. It changes no rate that anybody wrote, and
imports no torch.

From scratch .3 / width: within 30 % of the best at widths 32, 64 and 128 (.0072, .0048, .0023; study=mup_transfer), and
3.9e-4 at width 768, where GPT-3's smallest took 6e-4 (Brown et al. 2020, arXiv:2005.14165, table 2.1). To fine-tune
.05 / width: 6.5e-5 at 768 and 1.2e-5 at 4096, beside the 2e-5 to 5e-5 of BERT (Devlin et al. 2018, arXiv:1810.04805,
A.3) and the 2e-5 of a Llama of 7B (Touvron et al. 2023, arXiv:2307.09288, 3.1). LoRA ten times as much: 6.5e-4 at 768,
where Hu et al. 2021 (arXiv:2106.09685, table 9) took 4e-4 to 5e-4; ten times as in Biderman et al. 2024
(arXiv:2405.09673). DoRA as much as LoRA.

DPO and its kin, which a large step tears from the reference, take a tenth of these and of muP's: 1.2e-6 at 4096, beside
the 1e-6 of Rafailov et al. 2023 (arXiv:2305.18290, appendix B).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kleiber.signatures import signature

MUP = 0.02  # AdamW's default, in whose units the numbers below are
SCRATCH, TRAINED, LORA, PREFERENCE = 0.3, 0.05, 10.0, 0.1
WIDTHS = ("hidden_size", "n_embd", "d_model", "dim")  # what config.json files call it


def usual_rate(config: Mapping[str, Any], trained: bool) -> float | None:
    """The rate of a config, to two digits; None where one is written, or where the optimizer's default serves.

    trained  whether the run begins with trained weights
    """
    node, usual = config["model"], _default(config["optimizer"])
    if usual is None:
        return None
    share = PREFERENCE if _of_preferences(config) else 1.0
    wrapped = str(node["_target_"]).endswith(".HFModel")
    if not wrapped and not str((node.get("parametrization") or {}).get("_target_")).endswith(".Standard"):
        return float(f"{usual * share:.1e}") if share < 1 else None
    width = _wrapped_width(node) if wrapped else node.get("width") or node["aspect"] * node["depth"]
    if not isinstance(width, int) or width < 1:  # which the check refuses
        return None
    lora = str((config.get("adapter") or {}).get("_target_")).endswith((".LoRA", ".DoRA"))
    rate = share * (TRAINED if trained else SCRATCH) * (LORA if lora else 1.0) / width
    return float(f"{rate * usual / MUP:.1e}")


def _of_preferences(config: Mapping[str, Any]) -> bool:
    """Whether the loss holds a policy against its reference."""
    return str((config.get("objective") or {}).get("_target_")).startswith(
        ("kleiber.objectives.dpo.", "kleiber.objectives.kto.")
    )


def _default(optimizer: Any) -> float | None:
    """The rate that an optimizer has by default, where the config holds no other."""
    if not isinstance(optimizer, Mapping) or not str(optimizer.get("_target_")).startswith("kleiber."):
        return None
    told = signature(str(optimizer["_target_"])).parameters.get("lr")
    return told.default if told is not None and optimizer.get("lr", told.default) == told.default else None


def _wrapped_width(node: Mapping[str, Any]) -> int:
    """Of a Hugging Face model: as the node says, as its folder does, or as its kind does by default."""
    from kleiber.models.hf_config import model_folder, read_config

    own, name = node.get("config") or {}, str(node["path"])
    if node.get("weights", "pretrained") == "random" and not Path(name).expanduser().is_dir():
        from kleiber.models.hf_config import configuration

        own = configuration(name, "random", own)[0].to_dict()
    known = {**read_config(model_folder(name)), **own} if not any(key in own for key in WIDTHS) else own
    return int(next(known[key] for key in WIDTHS if key in known))
