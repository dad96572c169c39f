// Answers one sentence, which proves that express and its dependencies were loaded.
const app = require("/app/node_modules/express")();
app.get("/", (request, response) => response.send("node is ready\n"));
app.listen(3000, "127.0.0.1");
