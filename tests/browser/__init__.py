"""The dashboard in a real browser, Debian's Chromium driven by Playwright, against running processes."""
