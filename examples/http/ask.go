// usage: go run ask.go QUESTION      prints the answer as it comes; Ctrl-C closes the socket, which cancels
package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
)

type failure struct{ Code, Message string }

type event struct {
	Event, Text, Code, Message string
	Error                      *failure // refused before the first event
}

func fail(code, message string) {
	fmt.Fprintf(os.Stderr, "%s: %s\n", code, message)
	os.Exit(1)
}

func main() {
	path := os.Getenv("SOTTO_SOCKET")
	if path == "" {
		path = "/run/sotto/api.sock"
	}
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}
	client := http.Client{Transport: &http.Transport{DialContext: dial}}
	body, _ := json.Marshal(map[string]any{"input": os.Args[1], "max_tokens": 200})
	answer, err := client.Post("http://sotto/sotto/v1/generate", "application/json", bytes.NewReader(body))
	if err != nil {
		fail("no daemon", err.Error())
	}
	defer answer.Body.Close()
	for lines := bufio.NewScanner(answer.Body); lines.Scan(); {
		var e event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			fail("no answer of sottod", err.Error())
		}
		switch {
		case e.Error != nil:
			fail(e.Error.Code, e.Error.Message)
		case e.Event == "token":
			fmt.Print(e.Text)
		case e.Event == "error":
			fail(e.Code, e.Message)
		case e.Event == "done":
			fmt.Println()
			return
		}
	}
	fail("gone", "the stream ended without an end")
}
