"""Names in campaign.yaml turned into ASE calculators with a protocol identity."""
