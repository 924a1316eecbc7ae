"""The model card: README.md with the metadata that the Hub indexes."""

from __future__ import annotations

from typing import Any

import yaml

PIPELINES = {"segmentation": "image-segmentation", "classification": "image-classification"}
SPDX_ON_HUB = {
    "Apache-2.0": "apache-2.0",
    "MIT": "mit",
    "BSD-3-Clause": "bsd-3-clause",
    "CC-BY-4.0": "cc-by-4.0",
    "CC0-1.0": "cc0-1.0",
    "CC-BY-NC-4.0": "cc-by-nc-4.0",
    "CC-BY-NC-ND-4.0": "cc-by-nc-nd-4.0",
}


def model_card(config: dict[str, Any]) -> str:
    """README.md of a saved model, from its config.json."""
    spec, training = config["spec"], config["training"]
    body = [
        f"# {config['name']}",
        str(spec.get("summary", "")),
        "A slide model of [wsizoo](https://pypi.org/project/wsizoo): "
        + " -> ".join(_composition(spec))
        + ".",
        "## Use",
        f'```python\nimport wsizoo\n\nmodel = wsizoo.load("hf:OWNER/{config["name"]}@COMMIT")\n'
        'out = model(wsizoo.read_bag("slide.h5"))\n```',
        _features(config["fingerprint"]),
        "## Training and results",
        *([] if config["trained"] else ["**Not trained: its weights are random.**"]),
        *(_stated(training) or ["Not stated by the publisher."]),
        "## Intended use and limits",
        str(training.get("limits") or "Research only. Not validated for diagnosis."),
        f"Source of the method: {spec['source']}",
    ]
    return (
        f"---\n{yaml.safe_dump(_metadata(spec), sort_keys=False)}---\n\n" + "\n\n".join(body) + "\n"
    )


def _metadata(spec: dict[str, Any]) -> dict[str, Any]:
    licence = spec["licence"]
    known = SPDX_ON_HUB.get(licence)
    architecture = (spec.get("aggregator") or spec.get("model") or {}).get("name")
    task = (spec.get("head") or {}).get("name")
    return {
        "library_name": "wsizoo",
        "license": known or "other",
        **({} if known else {"license_name": licence}),
        "pipeline_tag": PIPELINES.get(str(task), "image-feature-extraction"),
        "tags": [
            "wsizoo",
            "histopathology",
            "whole-slide-image",
            "multiple-instance-learning",
            str(architecture),
        ],
    }


def _composition(spec: dict[str, Any]) -> list[str]:
    parts = (spec.get(part) for part in ("encoder", "selector", "aggregator", "model", "head"))
    return [str(part["name"]) for part in parts if part]


def _stated(training: dict[str, Any]) -> list[str]:
    return [f"- {key}: {value}" for key, value in training.items() if key != "limits"]


def _features(fingerprint: dict[str, Any]) -> str:
    stated = [f"{key} `{value}`" for key, value in fingerprint.items() if key != "declared"]
    if not stated:
        return "What made its features is not stated by the publisher."
    return f"Features must be made so, others are refused: {', '.join(stated)}."
