"""Simulators behind the topics of the real robot; scripted experts; the bridge node."""
