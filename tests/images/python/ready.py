"""Imports what a small data service imports, computes something with it, and says that it is ready."""

import flask
import numpy
import pandas

frame = pandas.DataFrame({"n": numpy.arange(1000)})
app = flask.Flask("ready")
with app.app_context():
    answer = flask.jsonify(total=int(frame["n"].sum()))
print("ready", answer.get_data(as_text=True).strip(), flush=True)
