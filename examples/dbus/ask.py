#!/usr/bin/python3
"""usage: ask.py QUESTION      prints the answer; needs dbus-python (python3-dbus of Debian)"""
import os
import sys

import dbus

bus = dbus.SessionBus() if os.environ.get("SOTTO_BUS") == "user" else dbus.SystemBus()
manager = dbus.Interface(bus.get_object("org.sotto.Sotto1", "/org/sotto/Sotto1"), "org.sotto.Sotto1.Manager")
try:
    # The default of 25 seconds is too short for an answer.
    text, info = manager.Generate(sys.argv[1], {"max_tokens": dbus.UInt32(200)}, timeout=600)
except dbus.DBusException as e:
    sys.exit(f"{e.get_dbus_name()}: {e.get_dbus_message()}")
print(text)
print(f'{info["usage"]["completion_tokens"]} tokens, {info["finish_reason"]}', file=sys.stderr)
