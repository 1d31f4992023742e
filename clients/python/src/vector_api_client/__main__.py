"""`python -m vector_api_client`, the same as the command `vector-api`."""

from vector_api_client.cli import main

if __name__ == "__main__":
    main()
