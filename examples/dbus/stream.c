/* usage: stream QUESTION      prints the answer as it comes; leaving closes the pipe, which cancels
 * build: cc stream.c -lsystemd -o stream
 * With the option `format` the pipe has the bare text; how it ended is told by the signal Done, after the last byte.
 * Without it the pipe has one JSON object a line, the last of which tells that. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <systemd/sd-bus.h>
#include <unistd.h>

int main(int argc, char **argv) {
    sd_bus *bus = NULL;
    sd_bus_error error = SD_BUS_ERROR_NULL;
    sd_bus_message *reply = NULL;
    const char *path, *which = getenv("SOTTO_BUS");
    char piece[4096];
    int pipe = -1;
    ssize_t n;
    if (argc != 2) return fprintf(stderr, "usage: stream QUESTION\n"), 2;

    int r = which && !strcmp(which, "user") ? sd_bus_open_user(&bus) : sd_bus_open_system(&bus);
    if (r < 0) return fprintf(stderr, "no bus: %s\n", strerror(-r)), 1;
    r = sd_bus_call_method(bus, "org.sotto.Sotto1", "/org/sotto/Sotto1", "org.sotto.Sotto1.Manager",
                           "StartGeneration", &error, &reply, "sa{sv}", argv[1], 2,
                           "max_tokens", "u", 200, "format", "s", "text");
    if (r >= 0) r = sd_bus_message_read(reply, "oh", &path, &pipe);
    if (r < 0) return fprintf(stderr, "%s\n", error.message ? error.message : strerror(-r)), 1;
    /* The descriptor belongs to the reply and is closed with it. */
    while ((n = read(pipe, piece, sizeof piece)) > 0) {
        fwrite(piece, 1, n, stdout);
        fflush(stdout);
    }
    puts("");

    /* It comes at once, unless the daemon died. */
    for (;;) {
        sd_bus_message *told = NULL;
        const char *reason, *fault;
        if ((r = sd_bus_process(bus, &told)) < 0 || (r == 0 && (r = sd_bus_wait(bus, 5 * 1000000ULL)) <= 0))
            return fprintf(stderr, "the daemon is gone\n"), 1;
        if (told && sd_bus_message_is_signal(told, "org.sotto.Sotto1.Generation", "Done") > 0 &&
            !strcmp(sd_bus_message_get_path(told), path) && sd_bus_message_read(told, "ss", &reason, &fault) >= 0) {
            if (*fault) fprintf(stderr, "%s\n", fault);
            return *fault != 0;
        }
        sd_bus_message_unref(told);
    }
}
