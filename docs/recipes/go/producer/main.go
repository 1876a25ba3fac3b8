// Takes orders, one a line: number, customer, amount in cents. Each is written with its intent in one transaction.
//
//	producer DATABASE_URL TOPIC < orders
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"log"
	"os"

	"github.com/jackc/pgx/v5"
)

type placed struct {
	Order       int64  `json:"order"`
	AmountCents *int64 `json:"amount_cents"`
}

func place(ctx context.Context, connection *pgx.Conn, topic, requestID, customer string, order placed) error {
	payload, err := json.Marshal(order)
	if err != nil {
		return err
	}
	return pgx.BeginFunc(ctx, connection, func(tx pgx.Tx) error {
		// Every intent of this transaction carries the id of the request.
		if _, err := tx.Exec(ctx, "select set_config('outbox.correlation_id', $1, true)", requestID); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, "insert into orders values ($1, $2, $3)", order.Order, customer, order.AmountCents); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, "select outbox.emit(topic => $1, key => $2, payload => $3::jsonb)", topic, customer, payload)
		return err
	})
}

func main() {
	ctx := context.Background()
	databaseURL, topic := os.Args[1], os.Args[2]
	connection, err := pgx.Connect(ctx, databaseURL)
	if err != nil {
		log.Fatal(err)
	}
	defer connection.Close(ctx)
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		var order placed
		var customer string
		var amountCents int64
		words, err := fmt.Sscan(lines.Text(), &order.Order, &customer, &amountCents)
		if words < 2 {
			log.Fatalf("%q: %v", lines.Text(), err)
		}
		if words == 3 {
			order.AmountCents = &amountCents
		}
		if err := place(ctx, connection, topic, fmt.Sprintf("req-%d", order.Order), customer, order); err != nil {
			log.Fatal(err)
		}
	}
	if err := lines.Err(); err != nil {
		log.Fatal(err)
	}
}
