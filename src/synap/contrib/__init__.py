"""Synap inside other people's frameworks. Each module needs the extra of its name, such as `synap-client[django]`.

Everything here uses the client as any program would: nothing reaches behind its public methods.
"""
