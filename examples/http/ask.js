#!/usr/bin/env node
// usage: ask.js QUESTION      prints the answer as it comes
const socketPath = process.env.SOTTO_SOCKET || "/run/sotto/api.sock";
const body = { messages: [{ role: "user", content: process.argv[2] }], max_tokens: 200, stream: true };
const fail = (error) => { console.error(error.message); process.exitCode = 1; };

const request = require("http").request({ socketPath, path: "/v1/chat/completions", method: "POST" }, (answer) => {
  let rest = "", whole = false;
  answer.setEncoding("utf8");
  answer.on("data", (chunk) => {
    rest += chunk;
    if (answer.statusCode !== 200) return;
    const lines = rest.split("\n");
    rest = lines.pop();
    for (const line of lines.filter((line) => line.startsWith("data: "))) {
      if (line === "data: [DONE]") { whole = true; continue; }
      const { choices, error } = JSON.parse(line.slice(6));
      if (error) { whole = true; fail(error); }
      else process.stdout.write(choices[0]?.delta.content ?? "");
    }
  });
  answer.on("error", () => {}); // "close" tells of it
  answer.on("close", () => {
    if (answer.statusCode !== 200) fail(JSON.parse(rest).error);
    else if (whole) console.log();
    else fail({ message: "the stream ended without an end: the daemon is gone" });
  });
});
request.on("error", fail);
request.end(JSON.stringify(body));
