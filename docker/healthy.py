"""Exit with 0 if an address answers 200 to the administrator: MLflow's /health says nothing of its database."""

import base64
import os
import sys
import urllib.request

request = urllib.request.Request(sys.argv[1])
if password := os.environ.get("MLFLOW_AUTH_ADMIN_PASSWORD"):
    login = f"{os.environ['MLFLOW_AUTH_ADMIN_USERNAME']}:{password}".encode()
    request.add_header("Authorization", f"Basic {base64.b64encode(login).decode()}")
with urllib.request.urlopen(request, timeout=4) as answer:
    sys.exit(answer.status != 200)
