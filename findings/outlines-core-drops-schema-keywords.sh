#!/usr/bin/env bash
# outlines-core: the expression that it makes of a JSON schema lacks keywords that it does not know, without a word.
# Guess: a keyword that no expression is made of (`multipleOf`, `not`, `uniqueItems`, `minimum`) is refused by name.
# Seen (outlines-core 0.2.14): it is left out, and text that the schema forbids matches; `jsonschema` says which.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/env"
"$dir/env/bin/pip" install -q --disable-pip-version-check "outlines-core==0.2.14" "jsonschema==4.25.1"
"$dir/env/bin/python" - <<'PY'
import importlib.metadata, json, re, sys
import jsonschema
from outlines_core.json_schema import build_regex_from_schema

cases = {
    '9': {"type": "integer", "minimum": 10},
    '13': {"type": "integer", "multipleOf": 7},
    '"x"': {"type": "string", "not": {"const": "x"}},
    '[1, 1]': {"type": "array", "items": {"enum": [1, 2]}, "uniqueItems": True},
}
print("outlines-core", importlib.metadata.version("outlines-core"))
dropped = []
for text, schema in cases.items():
    valid = jsonschema.Draft202012Validator(schema).is_valid(json.loads(text))
    matches = re.fullmatch(build_regex_from_schema(json.dumps(schema)), text) is not None
    print(f"{text:8} {json.dumps(schema):75} valid: {valid}, matches: {matches}")
    dropped.append(matches and not valid)
sys.exit(0 if all(dropped) else "this has changed")
PY
