from pathlib import Path

from wsizoo import Component, hookimpl

wsizoo_api = 1


@hookimpl
def wsizoo_components():
    target = "wsizoo_plugin_example.model:ExamplePooling"
    return [Component("aggregator", "example", target, "softmax pooling", "https://your.paper")]


@hookimpl
def wsizoo_registry():
    return Path(__file__).parent
