/* usage: ask QUESTION      prints the answer
 * build: cc ask.c -lsystemd -o ask */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <systemd/sd-bus.h>

int main(int argc, char **argv) {
    sd_bus *bus = NULL;
    sd_bus_error error = SD_BUS_ERROR_NULL;
    sd_bus_message *reply = NULL;
    const char *text, *which = getenv("SOTTO_BUS");
    if (argc != 2) return fprintf(stderr, "usage: ask QUESTION\n"), 2;

    int r = which && !strcmp(which, "user") ? sd_bus_open_user(&bus) : sd_bus_open_system(&bus);
    if (r < 0) return fprintf(stderr, "no bus: %s\n", strerror(-r)), 1;
    /* The default of 25 seconds is too short for an answer. */
    sd_bus_set_method_call_timeout(bus, 600 * 1000000ULL);
    r = sd_bus_call_method(bus, "org.sotto.Sotto1", "/org/sotto/Sotto1", "org.sotto.Sotto1.Manager", "Generate",
                           &error, &reply, "sa{sv}", argv[1], 1, "max_tokens", "u", 200);
    if (r >= 0) r = sd_bus_message_read(reply, "s", &text);
    if (r < 0)
        fprintf(stderr, "%s\n", error.message ? error.message : strerror(-r));
    else
        puts(text);
    sd_bus_message_unref(reply);
    sd_bus_error_free(&error);
    sd_bus_flush_close_unref(bus);
    return r < 0;
}
