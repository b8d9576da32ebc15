"""The plugin is built and pushed once; each engine then installs it from the registry, once for all its tests."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from tests.engine.engine import SUITES, Engine

from .managed import (
    NAME,
    REGISTRY,
    Managed,
    PluginLab,
    Registry,
    fetch_registry_program,
    next_files,
    script,
    way_out,
)

FIRST, SECOND = f"{REGISTRY}/trestle:0.1.0", f"{REGISTRY}/trestle:0.1.1"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """On this machine's engine; with --full on every one that Debian has."""
    if "installed" in metafunc.fixturenames:
        suites = list(SUITES) if metafunc.config.getoption("--full") else ["host"]
        metafunc.parametrize("installed", suites, indirect=True, scope="package")


@pytest.fixture(scope="package")
def registry() -> Iterator[Registry]:
    """With both versions in it, pushed by one engine that has built them from nothing."""
    fetch_registry_program()
    with contextlib.closing(Registry()) as made, contextlib.closing(Engine()) as engine:
        with way_out(engine.machine), made.at(engine.machine):
            engine.start()
            script(engine, "push", FIRST)  # builds, unless dist/plugin was made from these sources
            with next_files() as files:
                engine.docker("plugin", "rm", FIRST)
                # 28.5 refuses two plugins of the same content; one engine can push both only one after the other.
                script(engine, "push", SECOND, TRESTLE_PLUGIN_FILES=str(files))
        yield made


@pytest.fixture(scope="package")
def installed(request: pytest.FixtureRequest, registry: Registry) -> Iterator[PluginLab]:
    """An engine that has installed the plugin from the registry and loaded the image."""
    with contextlib.ExitStack() as stack:
        engine = Engine(request.param)
        plugin = Managed(engine)
        stack.callback(plugin.close)
        stack.callback(engine.close)
        stack.enter_context(registry.at(engine.machine))
        engine.start()
        engine.load_image()
        said = script(engine, "install", FIRST).stdout
        assert said.splitlines()[-1] == f"plugin: docker network create -d {NAME} --ipam-driver {NAME} shop"
        plugin.find()
        lab = PluginLab(engine, plugin)
        stack.callback(lab.close)
        yield lab


@pytest.fixture
def lab(installed: PluginLab) -> Iterator[PluginLab]:
    """The same, with no container and no network on it, as it must be again afterwards."""
    engine, plugin = installed.engine, installed.plugin
    if engine.process is None:  # a test that failed has left it so
        engine.start()
    if not plugin.enabled():
        plugin.enable()
    plugin.find()
    engine.clear()
    lab = PluginLab(engine, plugin)
    try:
        yield lab
    finally:
        lab.close()
    engine.clear()
    assert lab.remains() == []
