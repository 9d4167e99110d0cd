"""Integrations with other frameworks. Each module needs the extra of its name, such as `synap-client[django]`.

They use the client's public methods only.
"""
