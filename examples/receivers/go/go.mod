module eventpulse.example/receiver

go 1.16
