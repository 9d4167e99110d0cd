"""Django: `synap.contrib.django.cache.SynapCache` and the session engine `synap.contrib.django.sessions`."""
