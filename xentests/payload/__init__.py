"""Live patch payloads, built from Python for a running hypervisor."""
