"""Uses every method, property, signal and error of proto/org.sotto.Sotto1.xml through libdbus (python3-dbus).

Arguments: the interface file, the address of a bus with a mock that loads for 300 ms and writes 1000 tokens/s (context
4096), its configuration file, the address of a bus with a daemon that has no model yet, the folder of its models, and a
model to be put there; then, if there is one, the file of the design that the interface file comes from.
Ends with 0 after a last line "whole: N members, M errors"; what is left out or differs is an AssertionError.
"""

import collections
import ctypes
import os
import shutil
import sys
import time
import xml.etree.ElementTree as ET

import dbus
import dbus.bus
from dbus.mainloop.glib import DBusGMainLoop

NAME = "org.sotto.Sotto1"
ROOT = "/org/sotto/Sotto1"
LOG = "/org/freedesktop/LogControl1"
MANAGER, GENERATION, SESSION, MODEL, JOB = (f"{NAME}.{x}" for x in ("Manager", "Generation", "Session", "Model", "Job"))
OBJECTS, PROPERTIES = "org.freedesktop.DBus.ObjectManager", "org.freedesktop.DBus.Properties"
LOG_CONTROL = "org.freedesktop.LogControl1"

# What no request can have in this version: structured output is not served yet.
NOT_YET = {"org.sotto.Error.InvalidSchema"}
ERRORS = {
    f"org.sotto.Error.{x}"
    for x in (
        "UnknownOption InvalidSchema ContextTooLong UnknownModel TooLarge ModelBusy SessionBusy QueueFull RateLimited "
        "InsufficientMemory ShuttingDown LoadFailed UnsupportedModel DamagedModel DeadlineExceeded Cancelled Stalled "
        "InvalidConfig Internal"
    ).split()
} | {f"org.freedesktop.DBus.Error.{x}" for x in "InvalidArgs NotSupported AccessDenied UnknownObject".split()}

# Interfaces that have more than the design.
ADDED = set()

glib = ctypes.CDLL("libglib-2.0.so.0")
glib.g_main_context_iteration.argtypes = [ctypes.c_void_p, ctypes.c_int]
used, errors = set(), set()


def options(of):
    """A dictionary of variants; an empty one has no signature of its own."""
    return dbus.Dictionary(of, signature="sv")


class Client:
    """A connection that writes down what it uses and hears."""

    def __init__(self, address):
        self.bus = dbus.bus.BusConnection(address, mainloop=DBusGMainLoop())
        self.heard = []
        self.bus.add_signal_receiver(
            self.hear, bus_name=NAME, path_keyword="path", interface_keyword="interface", member_keyword="member"
        )

    def hear(self, *args, path, interface, member):
        self.heard.append((path, interface, member, args))

    def call(self, path, interface, member, *args, timeout=30):
        used.add((interface, "method", member))
        method = self.bus.get_object(NAME, path, introspect=False).get_dbus_method(member, interface)
        return method(*args, timeout=timeout)

    def fails(self, error, path, interface, member, *args, starts=""):
        try:
            self.call(path, interface, member, *args)
        except dbus.DBusException as e:
            assert e.get_dbus_name() == error, (member, args, e)
            assert e.get_dbus_message().startswith(starts), (member, starts, e)
            errors.add(error)
            return e
        raise AssertionError(f"{member}{args} does not fail with {error}")

    def get(self, path, interface, name):
        used.add((interface, "property", name))
        return self.bus.get_object(NAME, path, introspect=False).Get(interface, name, dbus_interface=PROPERTIES)

    def all(self, path, interface):
        """All properties; each of them also alone, with the same value and signature."""
        values = self.bus.get_object(NAME, path, introspect=False).GetAll(interface, dbus_interface=PROPERTIES)
        for name, value in values.items():
            alone = self.get(path, interface, name)
            assert type(alone) is type(value), (name, alone, value)
        return values

    def signal(self, path, interface, member, fits=lambda *args: True):
        """Waits for a signal."""
        end = time.monotonic() + 20
        while time.monotonic() < end:
            for i, (at, of, name, args) in enumerate(self.heard):
                if (at, of, name) == (path, interface, member) and fits(*args):
                    used.add((interface, "signal", member))
                    del self.heard[: i + 1]
                    return args
            glib.g_main_context_iteration(None, 0)
            time.sleep(0.002)
        raise AssertionError(f"no {interface}.{member} from {path}; heard {self.heard}")

    def interfaces(self, path):
        text = self.bus.get_object(NAME, path, introspect=False).Introspect(
            dbus_interface="org.freedesktop.DBus.Introspectable"
        )
        return interfaces(ET.fromstring(text))


def interfaces(node):
    """The interfaces of a node in canonical form, without comments and the layout."""
    form = lambda one: ET.canonicalize(ET.tostring(one), strip_text=True)
    return {one.get("name"): form(one) for one in node.findall("interface")}


def variant(text):
    return dbus.String(text, variant_level=1)


def is_read(stream):
    with os.fdopen(stream.take(), "rb") as pipe:
        return pipe.read().decode()


def generations(mine, other):
    text, info = mine.call(ROOT, MANAGER, "Generate", "hello", options({"max_tokens": dbus.UInt32(40)}))
    assert text == "hello" and list(info) == sorted(info), (text, info)
    assert {"id", "model", "finish_reason", "stop_detail", "seed", "usage", "timings"} <= set(info), info
    assert info["usage"].signature == "su" and info["timings"].signature == "sd", info
    assert isinstance(info["seed"], dbus.UInt64), info

    path, stream = mine.call(ROOT, MANAGER, "StartGeneration", "hello", options({"format": "text"}))
    assert is_read(stream) == "hello"
    reason, error, said = mine.signal(path, GENERATION, "Done")
    assert (reason, error, said["model"]) == ("stop", "", "mock"), (reason, error, said)
    result = mine.call(path, GENERATION, "Result")
    assert result[0] == "hello" and result[1]["id"] == said["id"], result
    seen = mine.all(path, GENERATION)
    assert (seen["State"], seen["Model"], path.endswith(seen["Id"].removeprefix("gen_"))) == (
        "done", f"{ROOT}/model/mock", True,
    ), seen
    # What ends twice ends once, and another connection has not heard of it.
    mine.call(path, GENERATION, "Cancel")
    mine.call(ROOT, MANAGER, "Cancel", path)
    glib.g_main_context_iteration(None, 0)
    assert not [heard for heard in other.heard if heard[0] == path], other.heard

    # One that runs is seen to, and is cancelled, by its object and by the manager.
    for cancel in (lambda p: mine.call(p, GENERATION, "Cancel"), lambda p: mine.call(ROOT, MANAGER, "Cancel", p)):
        path, stream = mine.call(ROOT, MANAGER, "StartGeneration", "on and on", options({"model": "mock-endless"}))
        with os.fdopen(stream.take(), "rb") as pipe:
            while b'"event":"token"' not in (line := pipe.readline()):
                assert line
            state = mine.get(path, GENERATION, "State")
            assert state == "decode", state
            progress = mine.get(path, GENERATION, "Progress")
            assert progress["done"] <= progress["total"] and isinstance(progress["done"], dbus.UInt64), progress
            assert mine.get(ROOT, MANAGER, "ActiveGenerations") == 1
            cancel(path)
            assert b'"code":"cancelled"' in pipe.read().splitlines()[-1]
        assert mine.signal(path, GENERATION, "Done")[:2] == ("error", "org.sotto.Error.Cancelled")
        mine.fails("org.sotto.Error.Cancelled", path, GENERATION, "Result", starts="cancelled: ")
        assert mine.get(path, GENERATION, "State") == "failed"


def sessions(mine):
    history = dbus.Array([("user", "before"), ("assistant", "yes")], signature="(ss)")
    begin = {"model": "mock", "system": "be brief", "messages": history, "max_tokens": dbus.UInt32(50)}
    path = mine.call(ROOT, MANAGER, "OpenSession", options(begin))
    text, info = mine.call(path, SESSION, "Ask", "one", options({}))
    assert text == "one" and info["model"] == "mock", info
    generation, stream = mine.call(path, SESSION, "Send", "two", options({"format": "text"}))
    assert is_read(stream) == "two"
    mine.signal(generation, GENERATION, "Done")
    said = [(m["role"], m["content"]) for m in mine.call(path, SESSION, "History")]
    begun = [("system", "be brief"), ("user", "before"), ("assistant", "yes")]
    assert said == begun + [("user", "one"), ("assistant", "one"), ("user", "two"), ("assistant", "two")], said
    seen = mine.all(path, SESSION)
    assert seen["Model"] == f"{ROOT}/model/mock" and 0 < seen["ContextUsed"] < seen["ContextLimit"] == 4096, seen
    mine.call(path, SESSION, "Reset")
    assert [(m["role"], m["content"]) for m in mine.call(path, SESSION, "History")] == begun
    mine.call(path, SESSION, "Close")
    assert mine.signal(path, SESSION, "Closed") == ("closed",)
    mine.fails("org.freedesktop.DBus.Error.UnknownObject", path, SESSION, "History")

    path = mine.call(ROOT, MANAGER, "OpenSession", options({"model": "mock-endless"}))
    generation, stream = mine.call(path, SESSION, "Send", "on", options({}))
    mine.fails("org.sotto.Error.SessionBusy", path, SESSION, "Ask", "two", options({}), starts="session_busy: ")
    os.close(stream.take())
    mine.signal(generation, GENERATION, "Done")
    mine.call(ROOT, MANAGER, "UnloadModel", "mock-endless", options({}))
    assert mine.signal(path, SESSION, "Closed") == ("model-unloaded",)


def models(mine):
    path = f"{ROOT}/model/mock"
    mine.call(ROOT, MANAGER, "UnloadModel", "mock", options({"force": True}))
    del mine.heard[:]
    job = mine.call(ROOT, MANAGER, "LoadModel", "mock", options({"context": dbus.UInt32(4096), "pin": True}))
    seen = mine.all(job, JOB)
    assert seen["Kind"] == "load-model" and seen["State"] in ("running", "done") and seen["Progress"] <= 1.0, seen
    assert job.endswith(seen["Id"].removeprefix("job_")), (job, seen)
    mine.call(job, JOB, "Wait")
    assert mine.signal(job, JOB, "Finished") == ("", "")
    assert mine.get(job, JOB, "State") == "done" and mine.get(job, JOB, "Progress") == 1.0
    loaded = lambda of, changed, gone: of == MODEL and changed.get("State") == "loaded"
    mine.heard.clear()
    mine.call(ROOT, MANAGER, "UnloadModel", "mock", options({"force": True}))
    job = mine.call(ROOT, MANAGER, "LoadModel", "mock", options({}))
    mine.signal(path, PROPERTIES, "PropertiesChanged", loaded)
    mine.call(job, JOB, "Wait")
    seen = mine.all(path, MODEL)
    assert (seen["Id"], seen["State"], seen["Error"], seen["Pinned"]) == ("mock", "loaded", "", True), seen
    assert set(seen["Capabilities"]) == {"generate", "chat", "embed"} and "default" in seen["Aliases"], seen
    assert path in mine.get(ROOT, MANAGER, "LoadedModels")
    listed = dict(mine.call(ROOT, MANAGER, "ListModels"))
    managed = mine.call(ROOT, OBJECTS, "GetManagedObjects")
    assert set(listed) == set(managed) and path in listed, (set(listed), set(managed))
    assert set(listed[path]) == set(seen) == set(managed[path][MODEL]), listed[path]
    # A load that nobody wants any more.
    mine.call(ROOT, MANAGER, "UnloadModel", "mock", options({"force": True}))
    job = mine.call(ROOT, MANAGER, "LoadModel", "mock", options({}))
    mine.call(job, JOB, "Cancel")
    mine.fails("org.sotto.Error.Cancelled", job, JOB, "Wait", starts="cancelled: ")
    assert mine.signal(job, JOB, "Finished")[0] == "org.sotto.Error.Cancelled"
    assert mine.get(job, JOB, "State") == "cancelled"
    job = mine.call(ROOT, MANAGER, "LoadModel", "mock-unsupported_model", options({"pin": False}))
    mine.fails("org.sotto.Error.UnsupportedModel", job, JOB, "Wait", starts="unsupported_model: ")
    assert mine.signal(job, JOB, "Finished")[0] == "org.sotto.Error.UnsupportedModel"
    # One that is used.
    generation, stream = mine.call(ROOT, MANAGER, "StartGeneration", "on", options({"model": "mock-endless"}))
    with os.fdopen(stream.take(), "rb") as pipe:
        while b'"event":"token"' not in pipe.readline():
            pass
        mine.fails("org.sotto.Error.ModelBusy", ROOT, MANAGER, "UnloadModel", "mock-endless", options({}))
        mine.call(ROOT, MANAGER, "UnloadModel", "mock-endless", options({"force": True}))
    mine.signal(generation, GENERATION, "Done")


def manager(mine):
    tokens = mine.call(ROOT, MANAGER, "Tokenize", "abc", options({"model": "mock"}))
    assert list(tokens) == [97, 98, 99] and tokens.signature == "u", tokens
    inputs = dbus.Array(["a", "bc"], signature="s")
    vectors, info = mine.call(ROOT, MANAGER, "Embed", inputs, options({"dimensions": dbus.UInt32(8)}))
    assert [len(v) for v in vectors] == [8, 8] and vectors.signature == "ad", vectors
    assert info["model"] == "mock" and info["usage"].signature == "su", info
    seen = mine.all(ROOT, MANAGER)
    assert (seen["State"], seen["StateReason"], seen["DefaultModel"]) == ("ready", "", "mock"), seen
    assert "embeddings" in seen["Features"] and seen["Version"] and seen["Tier"], seen
    assert isinstance(seen["QueueLength"], dbus.UInt32), seen


def refusals(mine, config):
    invalid = "org.freedesktop.DBus.Error.InvalidArgs"
    generate = lambda error, text, of, starts: mine.fails(
        error, ROOT, MANAGER, "Generate", text, options(of), starts=starts
    )
    generate(invalid, "hi", {"max_tokens": dbus.UInt32(0)}, "invalid_value: max_tokens")
    generate(invalid, "hi", {"max_tokens": dbus.Int64(5)}, "invalid_value: max_tokens")
    generate("org.sotto.Error.UnknownOption", "hi", {"max_token": dbus.UInt32(5)}, "unknown_field: max_token")
    generate("org.freedesktop.DBus.Error.NotSupported", "hi", {"regex": "a"}, "unsupported_field: regex")
    generate("org.sotto.Error.UnknownModel", "hi", {"model": "nope"}, "unknown_model: model: no model")
    generate("org.sotto.Error.TooLarge", "x" * (1 << 20) + "x", {}, "body_too_large: the texts")
    long = generate("org.sotto.Error.ContextTooLong", "x" * 5_000, {}, "context_too_long: input: ")
    assert "has room for 4096" in long.get_dbus_message(), long
    generate("org.sotto.Error.DeadlineExceeded", "hi", {"deadline_ms": dbus.UInt32(1), "model": "mock-endless"}, "deadline")
    inputs = dbus.Array(["a", ""], signature="s")
    mine.fails(invalid, ROOT, MANAGER, "Embed", inputs, options({}), starts="invalid_value: inputs[1]: ")
    for code, name in {
        "not_authorized": "org.freedesktop.DBus.Error.AccessDenied",
        "queue_full": "org.sotto.Error.QueueFull",
        "rate_limited": "org.sotto.Error.RateLimited",
        "insufficient_memory": "org.sotto.Error.InsufficientMemory",
        "shutting_down": "org.sotto.Error.ShuttingDown",
        "load_failed": "org.sotto.Error.LoadFailed",
        "unsupported_model": "org.sotto.Error.UnsupportedModel",
        "damaged_model": "org.sotto.Error.DamagedModel",
        "stalled": "org.sotto.Error.Stalled",
        "internal": "org.sotto.Error.Internal",
    }.items():
        generate(name, "hi", {"model": f"mock-{code}"}, f"{code}: ")
    mine.fails("org.freedesktop.DBus.Error.UnknownObject", ROOT, MANAGER, "Cancel", dbus.ObjectPath(f"{ROOT}/generation/x"))
    mine.fails("org.freedesktop.DBus.Error.UnknownMethod", ROOT, MANAGER, "Nothing")
    for name, error in (("State", "PropertyReadOnly"), ("Nothing", "UnknownProperty")):
        mine.fails(f"org.freedesktop.DBus.Error.{error}", ROOT, PROPERTIES, "Set", MANAGER, name, variant("x"))
    # A configuration that does not hold changes nothing, and what holds is taken.
    with open(config) as file:
        whole = file.read()
    with open(config, "a") as file:
        file.write("\n[nothing]\nof = 'this'\n")
    mine.fails("org.sotto.Error.InvalidConfig", ROOT, MANAGER, "Reload", starts="invalid_config: ")
    with open(config, "w") as file:
        file.write(whole)
    mine.call(ROOT, MANAGER, "Reload")


def log_control(mine):
    seen = mine.all(LOG, LOG_CONTROL)
    assert seen["SyslogIdentifier"] == "sottod", seen
    for name, value in (("LogLevel", "debug"), ("LogTarget", "null"), ("LogTarget", seen["LogTarget"])):
        mine.call(LOG, PROPERTIES, "Set", LOG_CONTROL, name, variant(value))
        assert mine.get(LOG, LOG_CONTROL, name) == value, name
    mine.fails("org.freedesktop.DBus.Error.InvalidArgs", LOG, PROPERTIES, "Set", LOG_CONTROL, "LogLevel", variant("loud"))


def introspection(mine, file):
    """What every kind of object serves is what the file says."""
    generation, stream = mine.call(ROOT, MANAGER, "StartGeneration", "x", options({}))
    is_read(stream)
    session = mine.call(ROOT, MANAGER, "OpenSession", options({}))
    job = mine.call(ROOT, MANAGER, "LoadModel", "mock", options({}))
    wanted, served = interfaces(ET.parse(file).getroot()), {}
    for path in (ROOT, f"{ROOT}/model/mock", generation, session, job, LOG):
        served |= mine.interfaces(path)
    standard = {f"org.freedesktop.DBus.{x}" for x in ("Introspectable", "Peer", "Properties")}
    assert set(served) - standard == set(wanted), (set(served), set(wanted))
    for name in wanted:
        assert served[name] == wanted[name], f"{name}\n{served[name]}\n{wanted[name]}"


def come_and_go(mine, folder, model):
    """Models that come and go are told of."""
    path = f"{ROOT}/model/story"
    at = os.path.join(folder, "story.gguf")
    assert not mine.call(ROOT, OBJECTS, "GetManagedObjects")
    assert mine.get(ROOT, MANAGER, "DefaultModel") == ""
    mine.fails("org.sotto.Error.UnknownModel", ROOT, MANAGER, "Generate", "x", options({}), starts="unknown_model: model: no model")
    shutil.copyfile(model, at)
    mine.call(ROOT, MANAGER, "Reload")
    (added,) = mine.signal(ROOT, OBJECTS, "InterfacesAdded", lambda of, what: of == path)[1:]
    assert set(added) == {MODEL} and added[MODEL]["Id"] == "story", added
    # The model's own properties are seen to change with its load, and so are the manager's.
    short = options({"raw": True, "max_tokens": dbus.UInt32(3), "seed": dbus.UInt64(1)})
    assert mine.call(ROOT, MANAGER, "Generate", "Once", short)[0]
    held = mine.signal(ROOT, PROPERTIES, "PropertiesChanged", lambda of, new, gone: new.get("LoadedModels") == [path])
    assert held[0] == MANAGER, held
    assert mine.get(path, MODEL, "ResidentBytes") > 0 and mine.get(path, MODEL, "SizeBytes") > 0
    mine.call(ROOT, MANAGER, "UnloadModel", "story", options({}))
    mine.signal(ROOT, PROPERTIES, "PropertiesChanged", lambda of, new, gone: new.get("LoadedModels") == [])
    os.remove(at)
    mine.call(ROOT, MANAGER, "Reload")
    of, gone = mine.signal(ROOT, OBJECTS, "InterfacesRemoved", lambda of, what: of == path)
    assert list(gone) == [MODEL], gone
    with open(at, "wb") as file:
        file.write(b"GGUF and nothing more")
    mine.call(ROOT, MANAGER, "Reload")
    job = mine.call(ROOT, MANAGER, "LoadModel", "story", options({}))
    mine.fails("org.sotto.Error.LoadFailed", job, JOB, "Wait", starts="load_failed: ")
    assert mine.signal(job, JOB, "Finished")[0] == "org.sotto.Error.LoadFailed"
    assert mine.get(job, JOB, "State") == "failed"
    assert mine.get(path, MODEL, "State") == "failed" and mine.get(path, MODEL, "Error") == "org.sotto.Error.LoadFailed"


def main():
    file, mock, config, real, folder, model, *designs = sys.argv[1:]
    for design in designs:
        ours, theirs = (interfaces(ET.parse(xml).getroot()) for xml in (file, design))
        assert {name for name in ours | theirs if ours.get(name) != theirs.get(name)} == ADDED, (ours, theirs)
    mine, other = Client(mock), Client(mock)
    generations(mine, other)
    sessions(mine)
    models(mine)
    manager(mine)
    refusals(mine, config)
    log_control(mine)
    introspection(mine, file)
    come_and_go(Client(real), folder, model)
    members = collections.Counter(
        (interface.get("name"), member.tag, member.get("name"))
        for interface in ET.parse(file).getroot().findall("interface")
        for member in interface
        if member.tag in ("method", "signal", "property")
    )
    assert max(members.values()) == 1, members
    assert not set(members) - used, f"not used: {sorted(set(members) - used)}"
    assert ERRORS - errors == NOT_YET, f"not seen: {sorted(ERRORS - errors)}"
    print(f"whole: {len(members)} members, {len(ERRORS & errors)} errors")


main()
